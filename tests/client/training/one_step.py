"""A private trainer of one plain step, whose update shows what the step left in the gradients."""

from __future__ import annotations

from typing import Any

import torch

from client.training.dp_sampling import repeatable_key
from client.training.dp_trainer import PrivateTrainer
from common.config.federation import TrainingConfig
from common.config.privacy import PrivacyConfig
from common.models.trainable import Trainable, train_only
from common.models.unet3d import build_model
from common.plan.plan import Plan
from common.plan.privacy import PrivacyPlan, Spend
from tests import tiny

RATE = 0.1
"""The learning rate: plain SGD moves the weights by this times the gradients."""


def trainer(
    noise: float = 1e-8,
    plan: Plan | None = None,
    trainable: Trainable = "all",
    training: dict[str, Any] | None = None,
    **privacy: object,
) -> PrivateTrainer:
    """Plain SGD of one step, so that the update shows what the step left in the gradients; hardly any noise."""
    plan = plan or tiny.plan()
    config = TrainingConfig.model_validate(
        {
            "local_steps": 1,
            "optimizer": "sgd",
            "momentum": 0,
            "weight_decay": 0,
            "learning_rate": RATE,
            "gradient_clip": 0,
            "precision": "float32",
            "augmentation": None,
        }
        | (training or {})
    )
    protection = PrivacyConfig.model_validate({"epsilon": 1, "sample_rate": 0.7} | privacy)
    validation = None if protection.validation == "off" else Spend("validation", noise, 1.0, 1)
    spends = PrivacyPlan(
        training=Spend("training", noise, protection.sample_rate, config.local_steps), validation=validation
    )
    plan = plan.model_copy(update={"privacy": spends})
    torch.manual_seed(7)
    model = build_model(plan.model)
    train_only(model, trainable)
    return PrivateTrainer(model, plan, config, 10**9, torch.device("cpu"), protection, repeatable_key)
