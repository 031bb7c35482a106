"""Telling a program or a socket of each mapping, durably and at least once: a load balancer, a DNS server."""
