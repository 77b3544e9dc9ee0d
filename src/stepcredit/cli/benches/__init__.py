"""What ``stepcredit bench`` times: a file a subject, with the interface of a verb."""
