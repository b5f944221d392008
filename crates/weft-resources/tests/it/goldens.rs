//! Every golden case by its name; a case that is not listed here is an error.

use std::collections::BTreeSet;

use crate::golden;

macro_rules! goldens {
    ($($kind:ident: [$($case:ident),* $(,)?])*) => {
        $(mod $kind {
            $(#[test] fn $case() { super::golden::run(stringify!($kind), stringify!($case)); })*
        })*

        const LISTED: &[(&str, &[&str])] = &[$((stringify!($kind), &[$(stringify!($case)),*])),*];
    };
}

goldens! {
    service: [
        l4t_03_protocols_of_ports,
        selector_takes_instances,
        selecting_service_called_directly,
        target_ports,
        registered_without_a_resource,
        every_violation_at_once,
        unknown_field,
        known_fields_of_kubernetes,
        balance,
    ]
    workload_entry: [
        by_selector,
        by_app_label,
        by_annotation,
        hbone,
        bad,
    ]
    http_route: [
        trf_01_matches,
        trf_01_bad_matches,
        trf_02_precedence,
        trf_02_oldest_route_wins,
        trf_02_conflict_is_told_to_the_loser,
        trf_03_weights,
        trf_03_split_over_selecting_services,
        trf_03_bad_weights,
        trf_05_rewrites,
        trf_05_bad_rewrites,
        trf_06_header_filters,
        trf_06_bad_header_filters,
        trf_11_timeouts,
        trf_11_bad_timeouts,
        missing_backend_is_500,
        backend_of_another_kind,
        parent_is_missing,
        parent_port,
        parent_is_a_gateway,
        consumer_route,
        cross_namespace_backend,
        tcp_port_takes_no_http_route,
        unsupported_filters,
        unknown_field,
        every_violation_at_once,
        names_of_rules,
        hostnames_have_no_effect,
        retry,
        limits,
    ]
    grpc_route: [
        matches,
        before_http_route,
        bad,
    ]
    tcp_route: [
        l4t_01_weights,
        oldest_wins,
        not_beside_http_routes,
        bad,
    ]
    authorization_policy: [
        sec_18_l4_attributes,
        sec_19_l7_attributes,
        sec_20_patterns,
        sec_20_conditions,
        sec_20_service_accounts,
        sec_20_empty_rules_and_the_empty_rule,
        sec_20_bad_values,
        sec_20_nothing_matches_everybody_by_mistake,
        sec_20_cluster_local_is_the_mesh,
        sec_20_path_templates,
        sec_20_tokens_count_against_the_peer,
        sec_21_scopes,
        sec_21_targets,
        sec_21_custom_is_refused,
        sec_21_a_selector_of_nobody,
        sec_22_http_rule_on_a_tcp_port,
        sec_23_no_principal,
        reference_to_nothing,
        missing_target,
        selector_and_targets,
        unknown_field,
    ]
    peer_authentication: [
        sec_12_precedence,
        sec_12_oldest_wins,
        sec_12_ports,
        sec_12_unset_inherits,
        sec_12_disable,
        sec_12_disable_but_for_a_port,
        sec_12_disable_does_not_lead_around_policy,
        sec_12_a_selector_of_nobody,
        sec_12_the_root_of_istio_is_not_ours,
        bad,
    ]
    mesh_defaults: [
        sec_33_deny,
        sec_33_nothing_said,
        sec_33_allow_unauthenticated,
        bad,
    ]
}

#[test]
fn every_golden_is_listed() {
    for (kind, cases) in LISTED {
        let listed: BTreeSet<_> = cases.iter().map(|c| c.replace('_', "-")).collect();
        let there = std::fs::read_dir(golden::directory(kind)).unwrap();
        let there: BTreeSet<_> = there
            .filter_map(|e| e.unwrap().file_name().into_string().unwrap().strip_suffix(".yaml").map(Into::into))
            .collect();
        assert_eq!(listed, there, "{kind}");
    }
}
