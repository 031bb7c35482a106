"""Network interfaces, queueing disciplines and filters, over rtnetlink."""
