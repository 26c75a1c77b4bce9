"""How well each modality is still represented after every later stage: probes, scores, measures, record."""
