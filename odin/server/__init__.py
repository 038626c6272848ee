"""Models over the network by the Open Inference Protocol: one data plane, REST and gRPC that only translate."""
