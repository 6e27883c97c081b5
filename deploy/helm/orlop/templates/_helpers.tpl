{{/* Labels of every object. */}}
{{- define "orlop.labels" -}}
{{ include "orlop.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Labels that find the pods. */}}
{{- define "orlop.selector" -}}
app.kubernetes.io/name: orlop
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "orlop.isSingle" -}}
{{- if eq .Values.shape "single-node" }}yes{{ end -}}
{{- end }}

{{/* What the schema cannot say: values that are each right and do not go together. */}}
{{- define "orlop.check" -}}
{{- $single := include "orlop.isSingle" . }}
{{- if and .Values.snapshots.groups (not $single) }}
{{- fail "snapshots.groups: csi-snapshotter cannot make group snapshots on many nodes, because nothing tells it which node a group is on; set it to false, or shape to single-node" }}
{{- end }}
{{- if and .Values.snapshots.groups (not .Values.snapshots.enabled) }}
{{- fail "snapshots.groups needs snapshots.enabled=true" }}
{{- end }}
{{- if and .Values.volumeAttributesClasses (not $single) }}
{{- fail "volumeAttributesClasses: csi-resizer cannot reach the node of a volume on many nodes; leave them out, or set shape to single-node" }}
{{- end }}
{{- if and $single (not .Values.nodeSelector) (gt (len ((lookup "v1" "Node" "" "").items | default list)) 1) }}
{{- fail "shape: this cluster has more than one node; set it to many-nodes, or choose the one node with nodeSelector" }}
{{- end }}
{{- if and .Values.podMonitor.enabled (not .Values.metrics.enabled) }}
{{- fail "podMonitor.enabled needs metrics.enabled=true" }}
{{- end }}
{{- $names := list }}
{{- range .Values.storageClasses }}{{ $names = append $names .name }}{{ end }}
{{- with .Values.defaultStorageClass }}
{{- if not (has . $names) }}
{{- fail (printf "defaultStorageClass: %q is none of storageClasses (%s)" . (join ", " $names)) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "orlop.config" -}}
{{ toToml (dict "pool" .Values.pools) }}
{{- end }}

{{/* Volumes of pools that lie outside the root directory: list of name and path. */}}
{{- define "orlop.poolPaths" -}}
{{- $root := printf "%s/" (trimSuffix "/" .Values.rootDir) }}
{{- range $index, $pool := .Values.pools }}
{{- if and $pool.path (not (hasPrefix $root $pool.path)) }}
- name: pool-{{ $index }}
  path: {{ $pool.path }}
  made: {{ hasKey $pool "create" }}
{{- end }}
{{- end }}
{{- end }}
