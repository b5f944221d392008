//! Which identity may answer for which service. Pure.
//!
//! Callers accept the identities of a service's instances, so whoever may register one may be whom they trust.

use serde::{Deserialize, Serialize};
use weft_model::{Name, ServiceKey, SpiffeId};

/// On a Service: service accounts of its namespace, parted by commas, that may register it too.
pub const ANNOTATION: &str = "weft.dev/service-accounts";

/// That a service account may register a service of its namespace. Written when a join token is spent, or by a join at
/// the socket. **[format]**
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub namespace: Name,
    pub account: Name,
    pub service: Name,
}

/// The answer, and on what it rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The service account is named like the service.
    Namesake,
    Granted,
    Annotated,
    Deny(Denied),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("{0} is no workload's identity; join with a token made by `weft token create`")]
    NoWorkload(SpiffeId),
    #[error(
        "{who} may not register service `{service}`, which is of another namespace; join with a token of `weft token create --service {service}`"
    )]
    Namespace { who: SpiffeId, service: ServiceKey },
    #[error(
        "{who} may not register service `{service}`: join as service account `{}` with a token of `weft token create --service {service}`, or have an operator annotate the Service `{service}` with `{ANNOTATION}: {account}`",
        service.name
    )]
    NotGranted { who: SpiffeId, service: ServiceKey, account: String },
}

/// `granted`: is there a [`Grant`] of this account and service? `annotation` is the value of [`ANNOTATION`] on the
/// Service resource, if there is one.
pub fn may_register(
    who: &SpiffeId,
    service: &ServiceKey,
    granted: Option<&Grant>,
    annotation: Option<&str>,
) -> Verdict {
    let Some((namespace, account)) = who.workload_parts() else {
        return Verdict::Deny(Denied::NoWorkload(who.clone()));
    };
    if namespace != service.namespace.as_str() {
        return Verdict::Deny(Denied::Namespace { who: who.clone(), service: service.clone() });
    }
    if account == service.name.as_str() {
        return Verdict::Namesake;
    }
    if granted.is_some_and(|g| g.covers(namespace, account, service)) {
        return Verdict::Granted;
    }
    if annotation.is_some_and(|a| a.split(',').any(|one| one.trim() == account)) {
        return Verdict::Annotated;
    }
    Verdict::Deny(Denied::NotGranted { who: who.clone(), service: service.clone(), account: account.to_owned() })
}

// === impl Grant ===

impl Grant {
    /// `None` when there is nothing to grant: the identity is no workload's, or the service its namesake.
    pub fn of(who: &SpiffeId, service: Name) -> Option<Self> {
        let (namespace, account) = who.workload_parts()?;
        let (namespace, account) = (Name::parse(namespace).ok()?, Name::parse(account).ok()?);
        (account != service).then_some(Self { namespace, account, service })
    }

    fn covers(&self, namespace: &str, account: &str, service: &ServiceKey) -> bool {
        self.namespace.as_str() == namespace
            && self.account.as_str() == account
            && self.namespace == service.namespace
            && self.service == service.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_11_an_identity_registers_its_namesake_and_what_was_granted() {
        let grant = |account: &str, service: &str| {
            let who = SpiffeId::parse(&format!("spiffe://td/ns/shop/sa/{account}")).unwrap();
            Grant::of(&who, Name::parse(service).unwrap())
        };
        let check = |who: &str, service: &str, grant: Option<Grant>, annotation: Option<&str>, want: &str| {
            let id = SpiffeId::parse(&format!("spiffe://td{who}")).unwrap();
            let got = match may_register(&id, &service.parse().unwrap(), grant.as_ref(), annotation) {
                Verdict::Deny(Denied::NoWorkload(_)) => "no workload",
                Verdict::Deny(Denied::Namespace { .. }) => "namespace",
                Verdict::Deny(Denied::NotGranted { .. }) => "not granted",
                Verdict::Namesake => "namesake",
                Verdict::Granted => "granted",
                Verdict::Annotated => "annotated",
            };
            assert_eq!(got, want, "{who} {service} {grant:?} {annotation:?}");
        };
        check("/ns/shop/sa/web", "shop/web", None, None, "namesake");
        check("/ns/shop/sa/web", "shop/Web", None, None, "not granted");
        check("/ns/shop/sa/api", "shop/web", None, None, "not granted");
        check("/ns/shop/sa/api", "shop/web", grant("api", "web"), None, "granted");
        // a grant is of one account and one service
        check("/ns/shop/sa/api", "shop/web", grant("cli", "web"), None, "not granted");
        check("/ns/shop/sa/api", "shop/web", grant("api", "bank"), None, "not granted");
        check("/ns/bank/sa/api", "bank/web", grant("api", "web"), None, "not granted");
        check("/ns/shop/sa/api", "shop/web", None, Some("cli, api"), "annotated");
        check("/ns/shop/sa/api", "shop/web", None, Some("apis,*"), "not granted");
        check("/ns/shop/sa/api", "shop/web", None, Some(""), "not granted");
        // nothing reaches over a namespace
        check("/ns/bank/sa/web", "shop/web", None, Some("web"), "namespace");
        check("/ns/bank/sa/api", "shop/web", grant("api", "web"), Some("api"), "namespace");
        check("", "shop/web", None, None, "no workload");
    }

    #[test]
    fn sec_11_a_refusal_names_both_and_what_to_do() {
        let who = SpiffeId::parse("spiffe://td/ns/shop/sa/api").unwrap();
        let Verdict::Deny(denied) = may_register(&who, &"shop/web".parse().unwrap(), None, None) else { panic!() };
        assert_eq!(
            denied.to_string(),
            "spiffe://td/ns/shop/sa/api may not register service `shop/web`: join as service account `web` with a token of \
             `weft token create --service shop/web`, or have an operator annotate the Service `shop/web` with \
             `weft.dev/service-accounts: api`"
        );
    }

    #[test]
    fn sec_11_there_is_nothing_to_grant_for_a_namesake() {
        let who = SpiffeId::parse("spiffe://td/ns/shop/sa/api").unwrap();
        assert_eq!(Grant::of(&who, Name::parse("api").unwrap()), None);
        let grant = Grant::of(&who, Name::parse("we/b").unwrap()).unwrap();
        assert_eq!(crate::keys::grant(&grant), format!("sys/grant/shop/api/{}", grant.service.escaped()));
    }
}
