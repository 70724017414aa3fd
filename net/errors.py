"""The errors that are no bugs."""


class UserError(ValueError):
    """What the user can put right; the message names the value and what was expected. Any other error is a bug."""


def is_out_of_memory(error):
    """Whether there was too little memory, which says nothing about a file. On a CPU PyTorch has no type for it."""
    return (isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError'
            or 'DefaultCPUAllocator' in str(error))
