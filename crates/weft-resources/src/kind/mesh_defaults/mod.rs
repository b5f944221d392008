//! `MeshDefaults` (ours): what happens where no policy says anything. One for the mesh, named `default`.

pub(crate) mod effect;

use weft_snapshot::fragment::{DefaultAction, MtlsMode};

use crate::{
    admit::Subject,
    schema::{At, Decode, schema},
    violation::{Sink, Spot, nearest},
};

/// The only name it may have.
pub const NAME: &str = "default";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshDefaults {
    pub authorization: DefaultAction,
    /// `None`: as the platform has it.
    pub mtls: Option<MtlsMode>,
}

schema! {
    struct RawMeshDefaults {
        authorization: String = "authorization",
        mtls: String = "mtls",
    }
}

// === impl MeshDefaults ===

impl MeshDefaults {
    /// Where there is none: peers with an identity of the mesh are allowed (Istio's rule).
    pub const AUTHORIZATION: DefaultAction = DefaultAction::AllowAuthenticated;

    pub(crate) fn admit(subject: &Subject<'_>, out: &mut Sink) -> Option<Self> {
        if subject.key.name.as_str() != NAME {
            let spot = Spot::new("metadata.name", subject.doc.line, 0);
            out.invalid(&spot, format!("there is one MeshDefaults; name it `{NAME}`, not `{}`", subject.key.name));
        }
        let raw = RawMeshDefaults::decode(&subject.doc.spec, &subject.spot, out)?;
        let authorization = raw.authorization.as_ref().map(|at| {
            choose(
                at,
                &[
                    ("allow", DefaultAction::AllowAuthenticated),
                    ("deny", DefaultAction::Deny),
                    // for moving in, together with mtls: permissive
                    ("allow-unauthenticated", DefaultAction::Allow),
                ],
                out,
            )
        });
        let mtls = raw.mtls.as_ref().map(|at| {
            choose(
                at,
                &[("strict", MtlsMode::Strict), ("permissive", MtlsMode::Permissive), ("disable", MtlsMode::Disable)],
                out,
            )
        });
        Some(Self {
            authorization: authorization.unwrap_or(Some(Self::AUTHORIZATION))?,
            mtls: mtls.unwrap_or_default(),
        })
    }
}

fn choose<T: Copy>(at: &At<String>, known: &[(&str, T)], out: &mut Sink) -> Option<T> {
    let found = known.iter().find(|(word, _)| *word == at.value).map(|(_, value)| *value);
    if found.is_none() {
        let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
        let message = match nearest(&at.value, words.iter().copied()) {
            Some(near) => format!("unknown value `{}`; did you mean `{near}`?", at.value),
            None => format!("unknown value `{}`; known: {}", at.value, words.join(", ")),
        };
        out.invalid(&at.spot, message);
    }
    found
}
