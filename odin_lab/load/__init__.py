"""Load on a server of the Open Inference Protocol: clients, samples, scenarios, the search for a rate."""
