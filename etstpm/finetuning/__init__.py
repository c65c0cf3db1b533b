"""The teacher's fine-tuning: one loop, and a choice of what the pyramid learns in it."""

from etstpm.finetuning.loop import FinetunedTeacher, TeacherEpoch, finetune_teacher

__all__ = ["FinetunedTeacher", "TeacherEpoch", "finetune_teacher"]
