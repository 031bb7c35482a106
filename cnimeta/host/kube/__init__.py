"""The Kubernetes Pod API: asked by a child process, which is killed when its time is up."""
