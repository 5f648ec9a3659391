"""``longstream gateway``: streams over HTTP, server-sent events and a page, read from Kafka's topics."""
