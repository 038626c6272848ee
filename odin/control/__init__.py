"""What watches over a serving pipeline: the controller, its policy and detector, baselines, faults."""
