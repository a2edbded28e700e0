"""One replica in a pod of its own, as `engine: Emulated` renders it: vLLM's command line, HTTP and metrics, our timing."""
