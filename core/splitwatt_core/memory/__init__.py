"""What more memory would do for decode: KV types, offload over a link, lossless coding; what each wins, and what it costs."""
