"""The three-stage curriculum, distillation of the recognizer, and export. Never imported by the pipeline."""
