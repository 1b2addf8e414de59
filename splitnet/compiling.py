"""What torch.compile says that nobody asked."""

import logging


def without_cuda_notice() -> None:
    """Not that CUDA is installed and no GPU is there: torch.utils.cpp_extension warns of it as it is imported."""
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No CUDA runtime is found")
