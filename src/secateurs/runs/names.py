"""The files by which the folders of runs and studies are told apart."""

RUN, COMPARISON, SENSITIVITY = "run.json", "comparison.json", "sensitivity.json"
