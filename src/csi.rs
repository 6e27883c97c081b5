//! csi.
