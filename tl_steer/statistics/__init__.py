"""Intervals, signal detection, bootstrap and permutation: from arrays to numbers."""

from .bootstrap import (
    false_discovery,
    interval_around,
    joint_counts,
    percentile_interval,
    permutation_p_value,
    resampled_weights,
    share_change,
    simultaneous_threshold,
    z_of_weights,
)
from .detection import (
    auc,
    auc_intervals,
    bias,
    class_covariance,
    d_prime,
    mean_of_classes,
    sensitivity,
    standardised_difference,
    z_rates,
)
from .intervals import (
    Interval,
    difference_interval,
    mean_interval,
    nested,
    rate_interval,
    share,
    spread_interval,
    t_interval,
    welch_interval,
    wilson_interval,
)

__all__ = [
    "Interval", "auc", "auc_intervals", "bias", "class_covariance", "d_prime", "difference_interval",
    "false_discovery", "interval_around", "joint_counts", "mean_interval", "mean_of_classes", "nested",
    "percentile_interval", "permutation_p_value", "rate_interval", "resampled_weights", "sensitivity",
    "share", "share_change", "simultaneous_threshold", "spread_interval", "standardised_difference",
    "t_interval", "welch_interval", "wilson_interval", "z_of_weights", "z_rates",
]  # fmt: skip
