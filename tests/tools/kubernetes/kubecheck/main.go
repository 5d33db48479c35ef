// Reads Kubernetes objects (YAML) and does with each what the API server does with one that is created: decodes it strictly, so that unknown and
// repeated fields are errors, gives it the defaults, and validates it. What only a running cluster knows (admission, quotas) is not looked at.
//
//	kubecheck FILE...     "-" is the standard input; prints "Kind name" for each good object, and exits with 1 if one is bad
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
	"k8s.io/kubernetes/pkg/apis/scheduling"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	schedulingvalidation "k8s.io/kubernetes/pkg/apis/scheduling/validation"
	"k8s.io/kubernetes/pkg/capabilities"
)

var scheme = legacyscheme.Scheme

var decoder = json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})

func validate(object runtime.Object) (field.ErrorList, error) {
	pods := corevalidation.PodValidationOptions{}
	switch object := object.(type) {
	case *apps.DaemonSet:
		return appsvalidation.ValidateDaemonSet(object, pods), nil
	case *apps.Deployment:
		return appsvalidation.ValidateDeployment(object, pods), nil
	case *apps.StatefulSet:
		return appsvalidation.ValidateStatefulSet(object, pods), nil
	case *core.Namespace:
		return corevalidation.ValidateNamespace(object), nil
	case *core.ConfigMap:
		return corevalidation.ValidateConfigMap(object), nil
	case *core.Secret:
		return corevalidation.ValidateSecret(object), nil
	case *core.Service:
		// As the registry does with what is created, before it validates.
		if object.Spec.ClusterIP != "" && len(object.Spec.ClusterIPs) == 0 {
			object.Spec.ClusterIPs = []string{object.Spec.ClusterIP}
		}
		return corevalidation.ValidateServiceCreate(object), nil
	case *core.ServiceAccount:
		return corevalidation.ValidateServiceAccount(object), nil
	case *networking.NetworkPolicy:
		return networkingvalidation.ValidateNetworkPolicy(object, networkingvalidation.NetworkPolicyValidationOptions{}), nil
	case *policy.PodDisruptionBudget:
		return policyvalidation.ValidatePodDisruptionBudget(object, policyvalidation.PodDisruptionBudgetValidationOptions{}), nil
	case *scheduling.PriorityClass:
		return schedulingvalidation.ValidatePriorityClass(object), nil
	default:
		return nil, fmt.Errorf("kubecheck does not know how to validate a %T: teach it", object)
	}
}

func check(document []byte) (string, error) {
	object, kind, err := decoder.Decode(document, nil, nil)
	if err != nil {
		return "", err
	}
	accessor, err := meta.Accessor(object)
	if err != nil {
		return "", err
	}
	name := kind.Kind + " " + accessor.GetName()
	clusterWide := kind.Kind == "Namespace" || kind.Kind == "PriorityClass"
	if !clusterWide && accessor.GetNamespace() == "" {
		accessor.SetNamespace("default")
	}
	scheme.Default(object)
	internal, err := scheme.UnsafeConvertToVersion(object, runtime.InternalGroupVersioner)
	if err != nil {
		return name, err
	}
	failures, err := validate(internal)
	return name, errors.Join(err, failures.ToAggregate())
}

func checkFile(path string) (int, error) {
	input := os.Stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		defer file.Close()
		input = file
	}
	reader := yaml.NewYAMLReader(bufio.NewReader(input))
	good := 0
	var bad error
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return good, bad
		}
		if err != nil {
			return good, err
		}
		if onlyComments(document) {
			continue
		}
		name, err := check(document)
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("%s: %s: %w", path, name, err))
			continue
		}
		fmt.Println(name)
		good++
	}
}

func onlyComments(document []byte) bool {
	for _, line := range bytes.Split(document, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

func main() {
	// Clusters allow it by default; who may use it is a matter of admission.
	capabilities.Initialize(capabilities.Capabilities{AllowPrivileged: true})
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: kubecheck FILE...")
		os.Exit(2)
	}
	failed := false
	for _, path := range os.Args[1:] {
		good, err := checkFile(path)
		if err == nil && good == 0 {
			err = fmt.Errorf("%s: no object in it", path)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}
