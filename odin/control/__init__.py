"""Control of a serving pipeline, outside the data path: controller, decisions, baselines, faults, supervision."""
