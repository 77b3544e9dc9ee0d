"""What can be read from the log-probabilities of sampled tokens, all in nats and elementwise on any shape."""

from torch import Tensor


def log_ratio(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``log pi - log pi_ref`` of the sampled token: one sample of the KL's integrand, not a KL.

    Args:
        policy_logprobs: float [...], log-probabilities under the policy that sampled, nats.
        ref_logprobs: The same tokens under the reference.

    Returns:
        float [...], nats; positive where the policy likes the token better than the reference does.

    Example:
        >>> import torch
        >>> log_ratio(torch.tensor([-1.0]), torch.tensor([-1.5])).tolist()
        [0.5]
    """
    return policy_logprobs - ref_logprobs


def opd(policy_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """On-policy distillation: ``s = log pi_T - log pi_theta`` of the sampled token.

    Args:
        policy_logprobs: float [...], under the policy that sampled, nats.
        teacher_logprobs: The same tokens under the teacher.

    Returns:
        float [...], nats; its expectation under the policy is minus the reverse KL, a single sample has either sign.

    Reference:
        PASS, arXiv 2606.29296, section 3.
    """
    return teacher_logprobs - policy_logprobs


def gopd(policy_logprobs: Tensor, teacher_logprobs: Tensor, base_logprobs: Tensor, lam: float = 1.25) -> Tensor:
    """Generalized on-policy distillation: ``s = -[(l_theta - l_base) - lam (l_T - l_base)]``.

    Args:
        policy_logprobs: float [...], under the policy that sampled, nats.
        teacher_logprobs: The same tokens under the teacher.
        base_logprobs: The same tokens under the base model (the student's initial weights).
        lam: How far to extrapolate from the base toward the teacher; 1 gives `opd` whatever the base.

    Returns:
        float [...], nats.

    Reference:
        G-OPD, arXiv 2602.12125; PASS, arXiv 2606.29296, eq. 5.
    """
    return lam * (teacher_logprobs - base_logprobs) - (policy_logprobs - base_logprobs)


def kl_k1(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The plain estimate of KL(pi || pi_ref) from samples of pi: unbiased, high variance, any sign; nats."""
    return log_ratio(policy_logprobs, ref_logprobs)


def kl_k2(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, low variance, never negative; nats."""
    return log_ratio(policy_logprobs, ref_logprobs).square() / 2


def kl_k3(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``exp(-d) - 1 + d`` with d the log-ratio: unbiased and never negative; nats.

    Reference:
        The k3 estimator of Schulman's note on approximating KL; GRPO's KL term, arXiv 2402.03300, eq. 4.
    """
    d = log_ratio(policy_logprobs, ref_logprobs)
    return (-d).expm1() + d
