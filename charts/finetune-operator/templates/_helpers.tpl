{{/* Name of every object: the release's, with the chart's added unless it is part of it already. */}}
{{- define "finetune-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image, with the chart's version as its tag if it has neither tag nor digest: an upgrade upgrades it too. */}}
{{- define "finetune-operator.image" -}}
{{- if regexMatch "[:@][^/]*$" .reference -}}
{{- .reference -}}
{{- else -}}
{{- printf "%s:%s" .reference .version -}}
{{- end -}}
{{- end -}}

{{/* The defaults that are set, as JSON. */}}
{{- define "finetune-operator.defaults" -}}
{{- $set := dict -}}
{{- range $name, $value := .Values.defaults -}}
{{- if $value -}}{{- $_ := set $set $name $value -}}{{- end -}}
{{- end -}}
{{- $set | toJson -}}
{{- end -}}

{{/* All that the operator may do, in the cluster or in each watched namespace. Never Secrets. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [list, watch, delete] # delete: ttlSecondsAfterFinished
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
# OpenShift asks for this right before a Job may name a FineTuneJob as its owner.
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete] # patch: deadlines, delete: suspend
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Where the pods of a FineTuneJob of several nodes meet.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
# Quota refusals and missing Secrets are reported nowhere else.
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- if .Values.kueue.enabled }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
{{- end -}}
