"""Which host ports an attachment gets: what is exposed, what is blocked, how one is picked. Pure."""
