"""The straightforward side: METHOD.md written down as one would on a first day, without tricks and without brakes.

Float32, ``nn.MultiheadAttention``, an additive float mask repeated per head, a decoder over all patches, logits over
the whole vocabulary at every token, AdamW without fusing, the loss read as a Python number each step, files read and
prepared when a sample is asked for, scikit-learn's ``KMeans`` as it comes.
"""
