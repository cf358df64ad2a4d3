"""Start a whole kernel on one machine, keep its processes alive, and stop them in order.

Nothing is imported here: a command that only looks where a kernel runs (`record`) must not pay for
what starts one.
"""
