//! The volume condition of CSI 1.9, which kubelet 1.36 reads: field 2 of the reply to NodeGetVolumeStats, and node capability 4.
//!
//! CSI 1.13 has no such field and reserves both numbers, so `proto/csi.proto` does not have them, and this reply is written
//! by hand in place of the generated one (build.rs). A client of 1.13 skips the field.

use super::proto::{VolumeUsage, volume_usage::Unit};
use super::reply;
use crate::engine::{EngineError, Finding};

/// VOLUME_CONDITION of the node's capabilities.
pub(super) const VOLUME_CONDITION: i32 = 4;

/// How a volume is, in one word and in many.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VolumeCondition {
    /// Something is wrong.
    #[prost(bool, tag = "1")]
    pub abnormal: bool,
    /// What.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// The reply to NodeGetVolumeStats.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeGetVolumeStatsResponse {
    /// What the volume takes.
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<VolumeUsage>,
    /// Set with `--legacy-volume-condition` only.
    #[prost(message, optional, tag = "2")]
    pub volume_condition: Option<VolumeCondition>,
}

fn condition(findings: &[Finding]) -> VolumeCondition {
    let messages: Vec<_> = findings
        .iter()
        .map(|finding| format!("{}: {}", finding.condition.help().reason, finding.message))
        .collect();
    VolumeCondition {
        abnormal: !messages.is_empty(),
        message: if messages.is_empty() {
            "nothing is wrong".to_owned()
        } else {
            reply::short(&messages.join(". "), "")
        },
    }
}

/// Usage and condition in one reply. Where the figures cannot be had because of what is wrong, they are left open: kubelet
/// reads the condition only beside some usage.
///
/// # Errors
/// There are no figures, and nothing is known to be wrong.
pub(super) fn reply(
    usage: Result<Vec<VolumeUsage>, EngineError>,
    findings: Result<Vec<Finding>, EngineError>,
) -> Result<NodeGetVolumeStatsResponse, EngineError> {
    let findings = findings.ok();
    let volume_condition = findings.as_deref().map(condition);
    let usage = match usage {
        Err(
            EngineError::Away(_)
            | EngineError::Damaged { .. }
            | EngineError::Host(_)
            | EngineError::Store(_),
        ) if findings.as_ref().is_some_and(|findings| !findings.is_empty()) => {
            vec![VolumeUsage { unit: Unit::Bytes.into(), ..VolumeUsage::default() }]
        }
        usage => usage?,
    };
    Ok(NodeGetVolumeStatsResponse { usage, volume_condition })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// The reply as CSI 1.13 has it.
    #[derive(Clone, PartialEq, Message)]
    struct Newer {
        #[prost(message, repeated, tag = "1")]
        usage: Vec<VolumeUsage>,
    }

    #[test]
    fn a_newer_client_skips_the_condition() {
        let usage = vec![VolumeUsage { total: 7, ..VolumeUsage::default() }];
        let reply = reply(Ok(usage.clone()), Ok(Vec::new())).unwrap();
        assert_eq!(
            reply.volume_condition.as_ref().map(|condition| condition.abnormal),
            Some(false)
        );
        assert_eq!(Newer::decode(reply.encode_to_vec().as_slice()), Ok(Newer { usage }));
    }

    #[test]
    fn without_a_condition_the_bytes_are_those_of_the_contract() {
        let usage = vec![VolumeUsage { total: 7, ..VolumeUsage::default() }];
        let ours = NodeGetVolumeStatsResponse { usage: usage.clone(), volume_condition: None };
        assert_eq!(ours.encode_to_vec(), Newer { usage }.encode_to_vec());
    }
}
