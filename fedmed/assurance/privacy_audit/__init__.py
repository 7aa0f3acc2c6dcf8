"""Attacks on the installed training code: what a differential-privacy claim must withstand."""
