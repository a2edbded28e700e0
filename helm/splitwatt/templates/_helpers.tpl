{{- define "splitwatt.labels" -}}
app.kubernetes.io/name: splitwatt
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels that select one component's pods. Call with (dict "root" . "component" "agent"). */}}
{{- define "splitwatt.selector" -}}
app.kubernetes.io/name: splitwatt
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Call with (dict "root" . "image" .Values.agent.image). */}}
{{- define "splitwatt.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "splitwatt.scrape" -}}
{{- if .root.Values.metrics.scrapeAnnotations -}}
annotations:
  prometheus.io/scrape: "true"
  prometheus.io/port: {{ .port | quote }}
  prometheus.io/path: /metrics
{{- end }}
{{- end }}

{{/* Path of a file for the Prometheus end point: a key of what is mounted, or a path as it is. */}}
{{- define "splitwatt.prometheusFile" -}}
{{- if hasPrefix "/" . }}{{ . }}{{ else }}/etc/splitwatt/prometheus/{{ . }}{{ end -}}
{{- end }}

{{/* The operator's arguments that say how Prometheus is asked, one a line. */}}
{{- define "splitwatt.prometheusArgs" -}}
{{- with .Values.operator.prometheus }}
- --prometheus-method={{ .method }}
{{- range $key, $value := .queryArgs }}
- {{ printf "--prometheus-query-arg=%s=%s" $key $value | quote }}
{{- end }}
{{- range .matchers }}
- {{ printf "--prometheus-matcher=%s" . | quote }}
{{- end }}
{{- range $name, $value := .headers }}
- {{ printf "--prometheus-header=%s=%s" $name $value | quote }}
{{- end }}
{{- range $name, $file := .headerFiles }}
- {{ printf "--prometheus-header-file=%s=%s" $name (include "splitwatt.prometheusFile" $file) | quote }}
{{- end }}
{{- with .bearerTokenFile }}
- {{ printf "--prometheus-token-file=%s" (include "splitwatt.prometheusFile" .) | quote }}
{{- end }}
{{- with .basicAuth.user }}
- {{ printf "--prometheus-user=%s" . | quote }}
{{- end }}
{{- with .basicAuth.passwordFile }}
- {{ printf "--prometheus-password-file=%s" (include "splitwatt.prometheusFile" .) | quote }}
{{- end }}
{{- with .caFile }}
- {{ printf "--prometheus-ca-file=%s" (include "splitwatt.prometheusFile" .) | quote }}
{{- end }}
{{- with .certFile }}
- {{ printf "--prometheus-cert-file=%s" (include "splitwatt.prometheusFile" .) | quote }}
{{- end }}
{{- with .keyFile }}
- {{ printf "--prometheus-key-file=%s" (include "splitwatt.prometheusFile" .) | quote }}
{{- end }}
{{- end }}
{{- end }}
