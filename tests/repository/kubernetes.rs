//! The manifests of `deploy/kubernetes` agree with the program: settings, ports, paths, times, queues. `make lint` builds them and
//! checks them against the schemas of Kubernetes where the tools are at hand.

use std::collections::BTreeSet;

use offramp::amqp::Topology;
use offramp_domain::command_ref::CommandType;
use serde_json::Value;

use crate::{files, read, repository, yaml};

const BASE: &str = "deploy/kubernetes/base";
const KEDA: &str = "deploy/kubernetes/components/keda/scaled-object.yaml";

fn deployment() -> Value {
    yaml(&format!("{BASE}/deployment.yaml")).remove(0)
}

fn job() -> Value {
    yaml(&format!("{BASE}/init-job.yaml")).remove(0)
}

fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]
}

fn container(workload: &Value) -> &Value {
    &pod(workload)["containers"][0]
}

/// The settings that are no secrets.
fn settings() -> Vec<(String, String)> {
    let file = read(&format!("{BASE}/offramp.env"));
    let lines = file.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once('=').unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn setting(name: &str) -> String {
    settings().into_iter().find(|(own, _)| own == name).unwrap_or_else(|| panic!("{name} is not set")).1
}

#[test]
fn every_setting_exists() {
    let documented = read("docs/operate/settings.md");
    let mut names: BTreeSet<String> = settings().into_iter().map(|(name, _)| name).collect();
    for workload in [deployment(), job()] {
        for variable in container(&workload)["env"].as_array().unwrap() {
            names.insert(variable["name"].as_str().unwrap().to_owned());
        }
    }
    let example = yaml("deploy/kubernetes/overlays/example/kustomization.yaml").remove(0);
    for literal in example["configMapGenerator"][0]["literals"].as_array().unwrap() {
        names.insert(literal.as_str().unwrap().split('=').next().unwrap().to_owned());
    }
    assert!(names.len() >= 9, "{names:?}");
    for name in names {
        let setting = name.strip_suffix("_FILE").unwrap_or(&name);
        assert!(documented.contains(&format!("`{setting}`")), "{name} is no setting");
    }
}

#[test]
fn a_stopping_worker_is_given_its_time() {
    let grace = pod(&deployment())["terminationGracePeriodSeconds"].as_u64().unwrap();
    let shutdown: u64 = setting("OFFRAMP_SHUTDOWN_SECONDS").parse().unwrap();
    assert!(grace >= shutdown + 5, "{grace} s for {shutdown} s");
}

#[test]
fn probes_ask_the_pages_of_the_worker() {
    let deployment = deployment();
    let container = container(&deployment);
    let address = setting("OFFRAMP_HTTP_ADDR");
    assert_eq!(container["ports"][0]["containerPort"].to_string(), address.strip_prefix("0.0.0.0:").unwrap());
    assert_eq!(container["ports"][0]["name"], "http");
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz"), ("startupProbe", "/livez")] {
        assert_eq!(container[probe]["httpGet"]["path"], path, "{probe}");
        assert_eq!(container[probe]["httpGet"]["port"], "http", "{probe}");
    }
    let monitor = yaml("deploy/kubernetes/components/pod-monitor/pod-monitor.yaml").remove(0);
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&Value::from("http"), &Value::from("/metrics")));
    let policy = yaml("deploy/kubernetes/components/network-policy/network-policy.yaml").remove(0);
    assert_eq!(policy["spec"]["ingress"][0]["ports"][0]["port"], container["ports"][0]["containerPort"]);
}

/// What the profile "restricted" of Kubernetes's Pod Security Standards asks for, and a read-only file system.
#[test]
fn pods_have_no_privileges() {
    let image = read("Dockerfile");
    let image_user = image.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    for workload in [deployment(), job()] {
        let (pod, container) = (pod(&workload), container(&workload));
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["runAsUser"].to_string(), image_user.split(':').next().unwrap());
        assert_eq!(pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["capabilities"]["drop"], Value::from(vec!["ALL"]));
        assert!(container["resources"]["limits"]["memory"].is_string());
    }
}

#[test]
fn secrets_are_files_that_the_documentation_names() {
    let page = read("docs/operate/kubernetes.md");
    for workload in [deployment(), job()] {
        let (pod, container) = (pod(&workload), container(&workload));
        let folder = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
        assert_eq!(container["volumeMounts"][0]["name"], pod["volumes"][0]["name"]);
        let mut files = 0;
        for variable in container["env"].as_array().unwrap() {
            if let Some(path) = variable["value"].as_str() {
                let key = path.strip_prefix(&format!("{folder}/")).unwrap_or_else(|| panic!("{path} is elsewhere"));
                assert!(variable["name"].as_str().unwrap().ends_with("_URL_FILE"));
                assert!(page.contains(&format!("--from-file={key}")), "{key} is not documented");
                files += 1;
            }
        }
        assert!(files >= 2);
    }
}

#[test]
fn selectors_match_the_workers() {
    let deployment = deployment();
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    let budget = yaml(&format!("{BASE}/pod-disruption-budget.yaml")).remove(0);
    assert_eq!(&budget["spec"]["selector"]["matchLabels"], labels);
    let monitor = yaml("deploy/kubernetes/components/pod-monitor/pod-monitor.yaml").remove(0);
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);
    for spread in pod(&deployment)["topologySpreadConstraints"].as_array().unwrap() {
        assert_eq!(&spread["labelSelector"]["matchLabels"], labels);
    }
    // The Job's pods are no workers.
    assert_ne!(job()["spec"]["template"]["metadata"]["labels"], *labels);
}

#[test]
fn keda_scales_by_every_work_queue_and_nothing_else() {
    let objects = yaml(KEDA);
    let scaled = objects.iter().find(|object| object["kind"] == "ScaledObject").unwrap();
    let topology = Topology::new(setting("OFFRAMP_PREFIX"));
    let queues: BTreeSet<String> = CommandType::ALL.into_iter().map(|command| topology.work_queue(command)).collect();
    let triggers = scaled["spec"]["triggers"].as_array().unwrap();
    let named: BTreeSet<String> =
        triggers.iter().map(|trigger| trigger["metadata"]["queueName"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named, queues);
    assert_eq!(triggers.len(), queues.len());
    for trigger in triggers {
        assert_eq!(trigger["metadata"]["protocol"], "http", "amqp does not count what workers hold");
        assert_eq!(trigger["authenticationRef"]["name"], objects[0]["metadata"]["name"]);
    }
    assert!(scaled["spec"]["minReplicaCount"].as_u64().unwrap() >= 1, "without a worker nobody ends subscriptions");
    assert_eq!(scaled["spec"]["scaleTargetRef"]["name"], deployment()["metadata"]["name"]);
}

#[test]
fn every_manifest_belongs_to_a_kustomization() {
    let root = repository().join("deploy/kubernetes");
    let mut listed = BTreeSet::new();
    for file in files(&root, "yaml").into_iter().filter(|file| file.ends_with("kustomization.yaml")) {
        let kustomization = yaml(file.strip_prefix(repository()).unwrap().to_str().unwrap()).remove(0);
        for key in ["resources", "components"] {
            for resource in kustomization[key].as_array().into_iter().flatten() {
                let path = file.parent().unwrap().join(resource.as_str().unwrap());
                assert!(path.exists(), "{} does not exist", path.display());
                listed.insert(path.canonicalize().unwrap());
            }
        }
    }
    let manifests = files(&root, "yaml").into_iter().filter(|file| !file.ends_with("kustomization.yaml"));
    let missing: Vec<_> = manifests.filter(|file| !listed.contains(&file.canonicalize().unwrap())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
