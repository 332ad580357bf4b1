"""The phone runtimes of `runtime/`, from Python: builds, agreement with the exporter."""
