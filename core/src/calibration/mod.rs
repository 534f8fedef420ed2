//! Text to tokens to windows.
