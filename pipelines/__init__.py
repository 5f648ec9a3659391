"""The streaming side of longstream: Kafka, Faust, the device process, metrics and the command line."""
