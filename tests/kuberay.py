"""What KubeRay's RayJob and RayCluster (v1) take, as far as our manifests use it.

Written by hand after KubeRay's types (Apache-2.0, github.com/ray-project/kuberay,
ray-operator/apis/ray/v1) and those of Kubernetes' core/v1: only fields in use, and no other is let
through, so that a misspelt one is found. The full schema is the cluster's own:

    kubectl apply --dry-run=server -f jobs/cluster/rayjob.yaml
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
QUANTITY: Schema = {
    "oneOf": [{"type": "integer"}, {"type": "string", "pattern": r"^[0-9.]+([KMGTP]i?|m)?$"}]
}
WORDS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def block(needed: str = "", **fields: Schema) -> Schema:
    """An object of these fields and no other, some of which are needed."""
    return {
        "type": "object",
        "properties": fields,
        "required": needed.split(),
        "additionalProperties": False,
    }


def some(item: Schema) -> Schema:
    """A list of at least one."""
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


SECRET = block("name key", name=NAME, key=TEXT, optional=FLAG)
VARIABLE = block("name", name=TEXT, value={"type": "string"}, valueFrom=block(secretKeyRef=SECRET))
PROBE = block(
    "httpGet",
    httpGet=block("port", path=TEXT, port=PORT),
    initialDelaySeconds=COUNT,
    periodSeconds=COUNT,
    timeoutSeconds=COUNT,
    failureThreshold=COUNT,
)
RESOURCES: Schema = {"type": "object", "additionalProperties": QUANTITY, "minProperties": 2}
CONTAINER = block(
    "name image resources securityContext readinessProbe livenessProbe volumeMounts",
    name=NAME,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    ports=some(block("containerPort", name=NAME, containerPort=PORT)),
    env=some(VARIABLE),
    resources=block("requests limits", requests=RESOURCES, limits=RESOURCES),
    securityContext=block(
        "allowPrivilegeEscalation capabilities",
        allowPrivilegeEscalation={"const": False},
        capabilities=block("drop", drop={"const": ["ALL"]}),
    ),
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    volumeMounts=some(block("name mountPath", name=NAME, mountPath=TEXT)),
)
POD = block(
    "securityContext containers volumes",
    securityContext=block(
        "runAsNonRoot runAsUser",
        runAsNonRoot={"const": True},
        runAsUser={"type": "integer", "minimum": 1},
        runAsGroup={"type": "integer", "minimum": 1},
        fsGroup={"type": "integer", "minimum": 1},
        seccompProfile=block("type", type=one_of("RuntimeDefault", "Localhost")),
    ),
    tolerations=some(
        block(
            key=TEXT,
            operator=one_of("Exists", "Equal"),
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        )
    ),
    containers=some(CONTAINER),
    volumes=some(
        block("name", name=NAME, persistentVolumeClaim=block("claimName", claimName=NAME))
    ),
)
TEMPLATE = block("spec", spec=POD)
CLUSTER = block(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=block("mode", mode=one_of("token", "disabled")),
    headGroupSpec=block(
        "rayStartParams template",
        serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
        rayStartParams=WORDS,
        template=TEMPLATE,
    ),
    workerGroupSpecs=some(
        block(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=WORDS,
            template=TEMPLATE,
        )
    ),
)
JOB = block(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER,
)
CLAIM = block(
    "accessModes resources",
    accessModes=some(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany")),
    storageClassName=NAME,
    resources=block("requests", requests=block("storage", storage=QUANTITY)),
)


def manifest(version: str, kind: str, spec: Schema) -> Schema:
    """Of a whole file."""
    return block(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=block("name", name=NAME),
        spec=spec,
    )


MANIFESTS = {
    "RayJob": manifest("ray.io/v1", "RayJob", JOB),
    "RayCluster": manifest("ray.io/v1", "RayCluster", CLUSTER),
    "PersistentVolumeClaim": manifest("v1", "PersistentVolumeClaim", CLAIM),
}
"""By kind."""
