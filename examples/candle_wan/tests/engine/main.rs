//! What the engine computes is right, does not depend on what is streamed, and bad input is told in a line.

mod arguments;
mod reference;
mod streaming;
mod support;
