"""Execution plans: iterators over nodes, the operators of plans, and the engines that run them."""
