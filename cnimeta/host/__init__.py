"""Host access: one module per thing touched (nftables, links, files, the Pod API, …), each behind a Protocol.

`protocols` lists the seams; the modules beside it are the real adapters; `cnimeta.testing` has a fake of each.
"""
