"""etstpm: student-teacher feature pyramid matching as a nightly batch pipeline."""

__version__ = "0.1.0"
