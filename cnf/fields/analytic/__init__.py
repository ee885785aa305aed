"""The analytic path of the concat-squash family: closed-form trace, adjoint by hand, kernels."""
