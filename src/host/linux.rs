//! LinuxHost.
