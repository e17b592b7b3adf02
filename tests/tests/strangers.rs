//! What somebody without an account can make the services spend: CPU, memory, places
//! (docs/security.md, "What strangers can multiply").

mod bodies;
mod memory;
mod spec;
mod work;
