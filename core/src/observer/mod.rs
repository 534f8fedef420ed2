//! Rules that turn statistics or weights into quantization parameters.
