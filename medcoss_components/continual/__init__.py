"""Mixup, distillation, exemplar selection and the rehearsal buffer."""
