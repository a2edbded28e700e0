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

{{/*
The whole name of an image: below image.registry, unless the repository names a registry itself, as container runtimes tell it.
A name without either would be somebody else's on docker.io. Parentheses: `helm upgrade --reuse-values` knows no value that is
new. Call with (dict "root" . "component" "agent").
*/}}
{{- define "splitwatt.image" -}}
{{- $image := (index .root.Values .component).image -}}
{{- $registry := trimSuffix "/" (((.root.Values.image).registry) | default "") -}}
{{- $name := $image.repository -}}
{{- $host := first (splitList "/" $name) -}}
{{- if not (and (contains "/" $name) (or (contains "." $host) (contains ":" $host) (eq $host "localhost"))) -}}
  {{- if $registry -}}
    {{- $name = printf "%s/%s" $registry $name -}}
  {{- else if not (contains "/" $name) -}}
    {{- fail (printf "set image.registry to where the images lie, as in --set image.registry=registry.example.com/team: %s alone would be an image of somebody else's on docker.io (make images builds them)" $name) -}}
  {{- end -}}
{{- end -}}
{{ $name }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Labels of one component's pods; what selects them cannot be changed. Call with (dict "root" . "component" "agent"). */}}
{{- define "splitwatt.podLabels" -}}
{{- $own := include "splitwatt.selector" . | fromYaml -}}
{{- toYaml (merge $own ((index .root.Values .component).podLabels | default dict)) -}}
{{- end }}

{{/* A component's variables, then the given ones, which stand instead of its own: server-side apply refuses a name given twice.
Call with (dict "own" LIST "extra" LIST). */}}
{{- define "splitwatt.env" -}}
{{- $named := dict -}}
{{- range .extra }}{{ $_ := set $named .name true }}{{ end -}}
{{- $all := list -}}
{{- range .own }}{{ if not (hasKey $named .name) }}{{ $all = append $all . }}{{ end }}{{ end -}}
{{- toYaml (concat $all (.extra | default list)) -}}
{{- end }}

{{/* Nodes on which somebody has marked an NVIDIA GPU: NVIDIA's feature discovery, node feature discovery (of the vendor alone, or of
its displays and accelerators), GKE, EKS (also by Karpenter), AKS. */}}
{{- define "splitwatt.gpuNodes" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      {{- range list "nvidia.com/gpu.present" "feature.node.kubernetes.io/pci-10de.present" "feature.node.kubernetes.io/pci-0300_10de.present" "feature.node.kubernetes.io/pci-0302_10de.present" }}
      - matchExpressions: [{key: {{ . }}, operator: In, values: ["true"]}]
      {{- end }}
      - matchExpressions: [{key: cloud.google.com/gke-accelerator, operator: Exists}]
      - matchExpressions: [{key: k8s.amazonaws.com/accelerator, operator: Exists}]
      - matchExpressions: [{key: karpenter.k8s.aws/instance-gpu-manufacturer, operator: In, values: [nvidia]}]
      - matchExpressions: [{key: kubernetes.azure.com/accelerator, operator: In, values: [nvidia]}]
{{- end }}

{{/* "true" where PodMonitors are rendered: then the Services carry no annotations, or who follows both would scrape twice. */}}
{{- define "splitwatt.monitored" -}}
{{- and .Values.metrics.podMonitor.enabled (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") -}}
{{- end }}

{{- define "splitwatt.scrape" -}}
{{- if and .root.Values.metrics.scrapeAnnotations (ne (include "splitwatt.monitored" .root) "true") -}}
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
