"""Root mean squared logarithmic error, averaged over the two targets."""

from environments.tasks.grading import metrics

TARGETS = ["formation_energy_ev_natom", "bandgap_energy_ev"]


def grade(submission, answers):
    return metrics.column_mean(metrics.rmsle, answers[TARGETS].to_numpy(), submission[TARGETS].to_numpy())
