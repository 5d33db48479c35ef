{{- define "lapwing.labels" -}}
app.kubernetes.io/name: lapwing
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "lapwing.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "lapwing.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Each tracker by a name of its own: a blob belongs to two of them by these names, which must not change with a pod's address. */}}
{{- define "lapwing.trackers" -}}
{{- $name := include "lapwing.name" . -}}
{{- $addresses := .Values.tracker.addresses -}}
{{- if and .Values.tracker.enabled (not $addresses) -}}
{{- range $i := until (int .Values.tracker.replicas) -}}
{{- $addresses = append $addresses (printf "%s-tracker-%d.%s-tracker.%s.svc:%d" $name $i $name $.Release.Namespace (int $.Values.tracker.port)) -}}
{{- end -}}
{{- end -}}
addresses = {{ $addresses | toJson }}
{{- end }}

{{- define "lapwing.identity" -}}
{{- if .Values.identity.secretName }}
[identity]
directory = "/etc/lapwing/identity"
authority = "ca.crt"
certificate = "tls.crt"
key = "tls.key"
members = {{ .Values.identity.members | toJson }}
{{- else if not .Values.identity.insecure }}
{{- fail "who belongs to the cluster? Set identity.secretName and identity.members, or identity.insecure=true on a network whose hosts you trust (docs/identity.md)" }}
{{- end }}
{{- end }}

{{- define "lapwing.identityVolume" -}}
{{- if .Values.identity.secretName }}
- name: identity
  secret:
    secretName: {{ .Values.identity.secretName }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "lapwing.identityMount" -}}
{{- if .Values.identity.secretName }}
- name: identity
  mountPath: /etc/lapwing/identity
  readOnly: true
{{- end }}
{{- end }}

{{/* What pods have that need no right at all. */}}
{{- define "lapwing.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}
