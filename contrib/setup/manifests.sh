#!/bin/sh
# Prints contrib/kubernetes/lapwing.yaml as the chart has it now. To renew it: contrib/setup/manifests.sh >contrib/kubernetes/lapwing.yaml
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
helm=$("$here/module.sh" kubernetes)/helm
cat <<'YAML'
# Trackers, seeds and nodes of Lapwing, without Helm. Written by contrib/setup/manifests.sh from the chart beside this file; a test holds it against that.
# Before you apply it: the image's name, the secret and its SPIFFE ID (README.md), the sizes.
apiVersion: v1
kind: Namespace
metadata:
  name: lapwing
  labels:
    pod-security.kubernetes.io/enforce: privileged
YAML
"$helm" template lapwing "$tree/contrib/kubernetes/chart" --namespace lapwing --kube-version 1.36.3 \
    --values "$tree/contrib/kubernetes/manifests-values.yaml" | sed '/helm.sh\/chart/d'
