"""The node agent: one process that has everything imported and forks for each invocation. See docs/agent.md."""
