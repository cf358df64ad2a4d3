"""What every worker does with a job: claim it, run it, keep its lease, answer."""
