"""How many sites must answer, and how many may be dishonest, in one secure aggregation.

With n sites asked, t = floor(2n/3) + 1 must answer every step, and at most c = floor((n-1)/3) may
work together with the server. Then 2t > n + c, so that any two groups of t sites share an honest
one: no two sums of one round are opened, and no site is taken for alive and dead at once (Bonawitz
et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, section
6.2, malicious server).
"""

from __future__ import annotations

MINIMUM_SITES = 3


def threshold(sites: int) -> int:
    """Return t = floor(2n/3) + 1, the smallest number of sites that a sum is opened by.

    Args:
        sites: n, those asked; at least 1.
    """
    return 2 * sites // 3 + 1


def colluders(sites: int) -> int:
    """Return c = floor((n-1)/3), the most sites that may work together with the server.

    Args:
        sites: n, those asked; at least 1.
    """
    return (sites - 1) // 3


def honest_survivors(minimum_sites: int) -> int:
    """Return the smallest number of honest sites in any sum that can be opened.

    That is the minimum of t(n) - c(n) over all n >= ``minimum_sites``. From n to n + 3 it grows
    by one, so three values tell.

    Args:
        minimum_sites: smallest cohort that a site takes part in; at least 3.
    """
    return min(threshold(n) - colluders(n) for n in range(minimum_sites, minimum_sites + 3))
